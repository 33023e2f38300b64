"""How LensNet is made: words (vocabulary), what they have to do with each other (wordnet, pairs), a sentence encoder to
learn from (teacher), and the fitting of their vectors (fit). ``megacontext train lensnet`` runs it (make).
"""
