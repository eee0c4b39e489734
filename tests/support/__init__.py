"""What several tests share: builders of models and data, and readers of what Lathe writes."""
