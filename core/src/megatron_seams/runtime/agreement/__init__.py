"""Agreement: every rank of a run says what it is about to run, before the first step."""
