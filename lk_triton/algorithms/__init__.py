"""How problems can be computed: a folder an algorithm."""
