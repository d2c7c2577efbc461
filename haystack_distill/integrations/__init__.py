"""Haystack 1 (`farm`) and Haystack 2 and 3 (`haystack`); each needs its framework installed, the core needs neither."""
