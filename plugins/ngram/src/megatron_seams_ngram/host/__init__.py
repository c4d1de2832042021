"""Tables whose rows lie on the host: the device gets the rows of a micro-batch and no others."""
