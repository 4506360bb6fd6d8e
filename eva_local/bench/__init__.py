"""Measure what an ensemble costs against its members: decoding, fusing, memory."""
