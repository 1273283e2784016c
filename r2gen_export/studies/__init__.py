"""Studies of a call, their image files as pixels, and the reports that come with them."""
