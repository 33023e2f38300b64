"""English words that say nothing about where an answer stands."""

_TEXT = """
    a about after all also am an and any are as at be been before being but by can could did do does doing done each
    for from had has have having he her hers him his how i if in into is it its just like many may me might more most
    much must my no nor not now of on one only or other our out over own please she should so some such tell than that
    the their them then there these they this those to too under until up upon us very was we were what when where which
    while who whom whose why will with would you your
    always already ever frequently never often rarely seldom sometimes still usually yet
    s t d ll re ve m don didn doesn isn wasn
"""

STOP_WORDS = frozenset(_TEXT.split())
