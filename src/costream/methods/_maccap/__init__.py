"""What MacCap is made of besides its file."""
