"""Pictures for training and measuring, and rain for clean ones."""
