"""What `conr_ray.Clusterer` is made of."""
