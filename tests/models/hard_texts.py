"""Texts that a wrong pre-tokenizer, normalizer or byte rule cuts otherwise."""

HARD_TEXTS = [
    "digits 0 12 345 6789 and 3.14159, 1,000,000",
    "a1b22c333 ½ ² ⅷ ٣٤",
    "Éé naïve façade; Straße, ŁÓDŹ; e\u0301 decomposed",
    "中文字符，日本語テキスト、한국어",
    "👩‍💻 👨‍👩‍👧‍👦 🇫🇷 flags and \u200d joiners",
    "   three leading spaces,  two within, trailing   ",
    "line\r\nline\r\n\r\n\ttab\n\n\nnbsp:\u00a0x\u00a0\u00a0y",
    "it's they're I'd we'll don't IT'S",
    "def f(x):\n    return x**2  # {'a': [1, 2]}",
]
CHAT_TEXT = "<|im_start|>user\nHello 123<|im_end|>\n<|im_start|>assistant\n"

# text -> ids of the tiny SentencePiece vocabulary, as llama.cpp gives them
SENTENCEPIECE_IDS = {
    "the cat in the hat": [1, 268, 259, 281, 263, 260, 272, 268, 259, 261, 263, 260],
    "  the  in é": [1, 280, 268, 259, 272, 259, 198, 172],
    "<s>the</s> in": [1, 1, 268, 2, 259, 272],
    "in<|user|>the": [1, 272, 286, 268],
    " the": [1, 259, 268],
    "\nthe": [1, 259, 13, 260, 267],
}
