"""Records of plans: receipts, acceptances, proofs, graduations."""
