"""The shared vocabulary: nouns, failures, events, frames, messages, and the guest programs. Pure: no I/O."""
