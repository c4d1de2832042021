"""What is kept of a plan: receipts, acceptances, proofs, graduations."""
