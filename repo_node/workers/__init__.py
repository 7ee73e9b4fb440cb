"""One node as several processes on one port, which share its shards.

The main process is the node: it registers, claims the shards, beats, runs the jobs, and serves like the others. The
workers only serve. It starts them, lends them its claims, stands in for one that is gone, and starts it anew; none
outlives it (``parent``). A claim lasts until the last process that has it ends.
"""
