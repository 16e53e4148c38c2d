"""Getting data: videos to arcs, downloads, weights. Each script is also a function that notebooks call."""
