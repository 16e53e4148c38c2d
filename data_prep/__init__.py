"""Getting data: videos to arcs, downloads, weights. Each file is a script, and a function that notebooks
call.
"""
