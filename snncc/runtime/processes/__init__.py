"""Networks whose time is split over several processes."""
