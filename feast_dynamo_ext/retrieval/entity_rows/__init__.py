"""Entity rows, from every form they are given in."""
