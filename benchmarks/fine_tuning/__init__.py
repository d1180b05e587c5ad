"""A trained model learns many related functions, beside training from scratch."""
