"""Answering: examples handed out, answers scored and recorded."""
