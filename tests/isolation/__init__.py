"""Does anything leak? Random documents, keys and requests, and an oracle that knows what each key may know when."""
