"""A deployment on loopback that can be broken on purpose, and an oracle that says whether its promises held."""
