"""Files and folders of token ids come in; sequences of ids, of which batches are drawn, go out."""
