"""``sessiontree bench``: measure any store behind any stack of caches, and show what was found."""
