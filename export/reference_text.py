"""What every export is verified on: prose, code, digits, quotes; a prompt to continue; and texts
whose token ids are easily wrong."""

from __future__ import annotations

TEXT = """The harbour froze early that winter, and by the second week of December the ferries had \
stopped running altogether. People walked across the ice with sledges full of flour, lamp oil and \
letters. "How long will it hold?" the children asked, and nobody knew. In 1893 it had held for 47 \
days; in 1911 for only 12.

To measure the thickness, drill a hole, lower a hooked rule and read the scale where it meets the \
underside. Write the result down at once, with the date, the time and the temperature of the air:

    def mean(values):
        total = sum(values)
        return total / len(values) if values else None

    print(mean([14.5, 15.25, 13.75]))  # centimetres

If the mean is below ten, nobody may cross. If it lies between ten and fifteen, people may walk \
apart from each other, but horses and carts must wait. Above twenty the road is open to everyone, \
and the market moves onto the ice: bread, fish, wool, hot chestnuts, and a brass band on Sundays. \
Why the band insisted on playing outdoors is not recorded. The mayor's diary says merely that they \
were loud, that they were cheerful, and that three of the trumpets froze.
"""
PROMPT = "The most important thing about the weather in winter is"

# One line per trap: digits and separators, accents, signs that are digits to some, other scripts,
# joined emoji, spaces at both ends, newlines and tabs, code, apostrophes, chat markers.
HARD_TEXTS = (
    "In 1984, 3.14159 and 1,000,000 were 100% of 2^64 = 18446744073709551616.",
    "naïve café, façade, Ångström, Straße, İstanbul, ПРИВЕТ мир, γειά σου",
    "½ cup, x² + y³, №5, Ⅷ, ①②③, ٣٤٥, ५६",
    "你好，世界。日本語のテキスト、한국어 텍스트 ไทย עברית العربية",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 — “quoted” … «так»",
    "   three spaces before and after   ",
    " ",
    "line\nline\n\n\nline\r\n\ttab\t\ttabs \n  indented \n",
    "def f(x):\n    return {'a': [x**2 for x in range(10)]}  # ok?!\n\n\nif x == 1:",
    "I'm, you'RE, we'll, it's, they'd, DON'T, o'clock ''s 's",
    "https://example.org/a_b?c=d&e=f#g CamelCaseWord snake_case_word ALLCAPS v1.2.3-rc4",
    "a\u00a0b\u2003c\u200bd\u3000e",
    "<|im_start|>user\nhi<|im_end|>\n<|begin_of_text|><|eot_id|><s></s>[INST]<|endoftext|>",
)
