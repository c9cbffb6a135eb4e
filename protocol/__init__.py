"""What is said: nouns, failures, frames, messages, and the guest program. Pure: no I/O."""
