"""The product as people use it: the demo, the README's tour, the failure that started it."""
