"""The feedback loop: judgments, mining, training, evaluation, gate, and the lap that joins them."""
