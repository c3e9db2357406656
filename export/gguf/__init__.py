"""GGUF for llama.cpp: plan, write, verify."""
