"""Decoding: a model, its parameters and prompts come in; new tokens go out, all at once or as they are chosen.

In: a `GPTConfig`, a tree of parameters, a ragged list of prompts as ids, and how to choose: `Sampling`.
Out: each row's new ids, and at the text's level text up to a stop string.

A model whose embedding table is padded, as nanoGPT's 50304 rows for GPT-2's 50257 ids, also needs
`vocab_size=tokenizer.vocab_size`; `generate.py` passes it. Stop strings belong to texts, not to ids:

    text = TextStream(tokenizer, stop=["\\n\\n"], end_ids=config.eos_token_ids)  # of jaxgpt.decode.text
    for [token] in stream(config, params, [tokenizer.encode(prompt)], max_new_tokens=100):
        print(text.push(token), end="")
        if text.ended:
            break
    print(text.flush())
"""
