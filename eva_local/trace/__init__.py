"""Why each symbol of an answer was chosen: a file that is written step by step, and its page."""

from eva_local.trace.file import TraceFile, TraceWriter, read_trace
from eva_local.trace.page import summarize, trace_page

__all__ = ["TraceFile", "TraceWriter", "read_trace", "summarize", "trace_page"]
