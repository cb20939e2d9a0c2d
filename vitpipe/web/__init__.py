"""Asking servers: which failures may pass, who asks, which addresses may be followed; its errors hold no secret."""
