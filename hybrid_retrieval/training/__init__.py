"""Training of the embedded pair (encoder and cross-encoder). Needs the ``torch`` extra; nothing outside imports it."""
