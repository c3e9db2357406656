"""What a GGUF file is: its header, names, rotary embedding, tokenizer and weights, both ways."""
