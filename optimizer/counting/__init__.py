"""What a model weighs and multiplies, bodies of If, Loop and Scan included: the numbers of `inspect`, tables and gates."""
