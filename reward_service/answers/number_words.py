"""The words that stand behind numbers, in English and a little of other languages: what multiplies, joins, measures."""

from __future__ import annotations

MULTIPLIERS = {
    **dict.fromkeys(("hundred", "hundreds"), 10**2),
    **dict.fromkeys(("thousand", "thousands"), 10**3),
    **dict.fromkeys(("lakh", "lakhs", "lac"), 10**5),
    **dict.fromkeys(("million", "millions"), 10**6),
    **dict.fromkeys(("crore", "crores"), 10**7),
    **dict.fromkeys(("billion", "billions"), 10**9),
    **dict.fromkeys(("trillion", "trillions"), 10**12),
    **dict.fromkeys("万萬만", 10**4),
    **dict.fromkeys("亿億억", 10**8),
}
PERCENT = {"%", "percent", "percentage", "pct"}
FUNCTIONS = {"sqrt", "cbrt", "sin", "cos", "tan", "cot", "log", "ln", "lg", "exp", "arcsin", "arccos", "arctan"}
# After a number these say that it is not all: "3 squared", "2 pi", "5 out of 6", "2 times 3".
CONTINUED = {"pi", "squared", "cubed", "factorial", "out", "plus", "minus", "times", "divided", "over", "mod"}
LINKING = {"of", "by", "from"}  # 5 out of 6, 6 divided by 2
JOINED = {"and", "or", "to", "through", "versus", "vs", "&"}
PARTS = {"half", "third", "quarter", "halves", "thirds", "quarters", "a", "one", "two", "three"}
UNIT_LETTERS = set("mshdgtlLNJWVACFKPp")  # metre, second, ... ; other single letters are unknowns
# fmt: off
SHORT_UNITS = frozenset({
    "cm", "mm", "km", "nm", "um", "dm", "kg", "mg", "ug", "ml", "mL", "cl", "dl", "ft", "in", "yd", "mi", "lb", "lbs",
    "oz", "hr", "hrs", "min", "sec", "ms", "ns", "rad", "deg", "mph", "kph", "Hz", "kHz", "MHz", "GHz", "kW", "MW",
    "kJ", "MJ", "cal", "kcal", "st", "nd", "rd", "th", "am", "pm", "AM", "PM", "USD", "EUR", "GBP", "INR", "RM", "pt",
    "pts", "cc", "mol", "Pa", "kPa", "eV", "MB", "GB", "KB",
})
# fmt: on
# Sizes of one kind that are read together: 2 hours 30 minutes.
SIZES = {
    **dict.fromkeys(
        ("hour", "hours", "hr", "hrs", "h", "minute", "minutes", "min", "mins", "second", "seconds"), "time"
    ),
    **dict.fromkeys(("sec", "s", "day", "days", "week", "weeks", "month", "months", "year", "years"), "time"),
    **dict.fromkeys(("foot", "feet", "ft", "inch", "inches", "in", "yard", "yards", "mile", "miles"), "length"),
    **dict.fromkeys(("m", "cm", "mm", "km", "metres", "meters", "metre", "meter", "centimeters"), "length"),
    **dict.fromkeys(("dollar", "dollars", "cent", "cents", "pound", "pounds", "pence", "euro", "euros"), "money"),
    **dict.fromkeys(("ounce", "ounces", "oz", "lb", "lbs", "kg", "g", "grams", "kilograms", "stone"), "mass"),
}
# After these "- 5" is a minus, and not a dash.
SAYING = {"is", "are", "was", "be", "equals", "equal", "gives", "get", "gets", "by", "answer", "total", "to", "of"}
