"""From history to online: the newest row of each entity key."""
