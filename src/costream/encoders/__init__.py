"""Towers: from pictures, words and clips to vectors of one space."""
