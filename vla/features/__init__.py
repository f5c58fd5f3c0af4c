"""What a frozen backbone says of the frames of shards, worked out once and kept beside them."""
