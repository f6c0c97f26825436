"""A source's text comes in; a folder with its token files and its tokenizer goes out, made whole or gone on with."""
