"""Governance: the audit, owners and review dates, the gate, and the preview of an upgrade."""
