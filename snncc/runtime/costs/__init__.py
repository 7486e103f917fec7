"""What a call will probably take: work that sizes tell, at prices that were measured."""
