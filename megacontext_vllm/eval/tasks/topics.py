"""Topics that a history may cover: crafts that ordinary text does not speak of, each with what can be said about it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """``name``: what the topic is called. The rest fits the sentences of ``PASSAGES``."""

    name: str
    tools: str
    first: str
    then: str
    mistake: str


PASSAGES = (
    " Let us now turn to {name}. Whoever takes it up needs {tools}, a quiet room and a good deal of patience. The "
    "first thing to learn is to {first}. Only after some weeks of practice is it time to {then}. Many beginners "
    "{mistake}, and then all the work of the day is lost. An experienced teacher will notice this early and put it "
    "right. In most towns there is a small club whose members meet once a week to show each other what they have "
    "made. They say that it cannot be learned from books alone, and that the hands understand it long before the "
    "head does. So much for {name}.",
    " The following remarks are about {name}. It looks easy, but it asks for a steady hand. Good results depend on "
    "{tools}, and none of these should be bought cheaply. One begins every time in the same way, which is to "
    "{first}. When that has been done with care, one can {then}. It is a common error of newcomers that they "
    "{mistake}; nothing can be saved afterwards. In former times it was handed down from parents to children, and "
    "whole families lived on it. Nowadays it is a pastime for long evenings, and there are courses for those who "
    "want to try {name}.",
)
"""100 to 150 tokens each, with a leading space."""

TOPICS = (
    Topic("falconry", "a leather glove and a hooded bird", "call the bird back", "let it hunt", "feed it too much"),
    Topic("origami", "square sheets of thin paper", "crease exactly", "fold a crane", "fold against the grain"),
    Topic("marquetry", "thin sheets of veneer and glue", "cut a pattern", "press it on a board", "use a blunt knife"),
    Topic("calligraphy", "a broad pen and black ink", "draw even strokes", "join the letters", "press too hard"),
    Topic("beekeeping", "a smoker, a veil and a hive", "calm the hive", "take out a frame", "take all the honey"),
    Topic("glassblowing", "a furnace and a long pipe", "gather the melt", "blow a bubble", "let it cool too fast"),
    Topic("bookbinding", "linen thread, a needle and boards", "fold the sheets", "sew the spine", "skip the pressing"),
    Topic("basketry", "willow rods that were soaked overnight", "cross the base", "weave the wall", "dry the rods"),
    Topic("topiary", "long shears and an evergreen hedge", "mark the outline", "clip it into shape", "cut in frost"),
    Topic("juggling", "three balls of the same weight", "throw one ball", "add the third", "watch their hands"),
    Topic("ventriloquism", "a puppet and a mirror", "speak with closed lips", "move the puppet", "breathe too high"),
    Topic("puppetry", "strings, wood and a small stage", "hold the cross", "let the figure walk", "tangle the strings"),
    Topic("macrame", "cotton cord and a wooden ring", "tie a square knot", "hang the rows", "pull one side harder"),
    Topic("lacemaking", "bobbins, pins and a pillow", "wind the bobbins", "cross the pairs", "take out pins too soon"),
    Topic("taxidermy", "wire, clay and glass eyes", "measure the body", "mount the skin", "leave it in the sun"),
    Topic("cheesemaking", "fresh milk, rennet and a cloth", "warm the milk", "cut the curd", "stir it too long"),
    Topic("candlemaking", "wax, wicks and a pot", "melt the wax", "dip the wick", "let the wax smoke"),
    Topic("soapmaking", "lye, oil and wooden moulds", "weigh the oil", "stir in the lye", "unmould it too early"),
    Topic("papermaking", "rags, a vat and a fine sieve", "beat the pulp", "lift the sieve", "shake it unevenly"),
    Topic("felting", "raw wool, soap and hot water", "lay out the wool", "rub it flat", "pour the water too fast"),
    Topic(
        "whittling", "a short knife and a piece of lime wood", "cut with the grain", "round the edges", "cut too deep"
    ),
    Topic("gilding", "gold leaf, glue and a soft brush", "smooth the ground", "lay the leaf", "breathe on it"),
    Topic("enamelling", "glass powder and a small kiln", "clean the copper", "fire the layer", "fire it twice"),
    Topic("mosaic art", "coloured stones, mortar and pliers", "break the stones", "set the pattern", "use wet mortar"),
    Topic("kite flying", "silk, bamboo and a long line", "stand back to the wind", "give out line", "run too far"),
    Topic("yodelling", "a good ear and an echoing valley", "hold the low note", "flip to the high one", "shout"),
    Topic(
        "tap dancing", "hard shoes and a wooden floor", "shift the weight", "speed up the steps", "stiffen the knees"
    ),
    Topic("fly fishing", "a light rod and tied feathers", "throw the line", "let the bait drift", "pull too early"),
    Topic(
        "ice carving", "chisels, a saw and cold hands", "saw the block", "carve the details", "wait for the noon sun"
    ),
    Topic("rope making", "hemp, a hook and a long lane", "twist the yarn", "lay three strands", "let go of one end"),
    Topic("wood turning", "a lathe and long gouges", "centre the block", "hollow the bowl", "stop the lathe by hand"),
    Topic("tea blending", "leaves, scales and many small cups", "smell the leaves", "mix the sorts", "boil the leaves"),
)
