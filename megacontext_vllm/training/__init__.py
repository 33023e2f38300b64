"""How the nets are made: ``megacontext train ...``."""
