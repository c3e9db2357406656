"""What every export is verified on: prose, code, digits, quotes; and a prompt to continue."""

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
