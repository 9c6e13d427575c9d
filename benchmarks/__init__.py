"""What is measured, how, and with what result."""

import os

# Read when torch is loaded: without it torch's profiler announces each start and stop on the terminal.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
