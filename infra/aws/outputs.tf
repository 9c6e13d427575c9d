output "bucket" {
  description = "Where recipes put their workspace: s3://BUCKET/..."
  value       = aws_s3_bucket.runs.bucket
}

output "cluster_yaml" {
  description = "cluster/configs/aws.yaml with everything filled in, for `ray up`."
  value = templatefile("${path.module}/../../cluster/configs/aws.yaml", {
    cluster_name                   = var.name
    region                         = data.aws_region.current.name
    max_workers                    = var.max_workers
    image                          = var.image
    key_name                       = var.key_name
    ssh_private_key                = var.ssh_private_key
    token_file                     = var.token_file
    espan_home                     = "s3://${aws_s3_bucket.runs.bucket}/runs"
    head_instance_type             = var.head_instance_type
    head_launch_template           = aws_launch_template.node["head"].id
    head_launch_template_version   = jsonencode(tostring(aws_launch_template.node["head"].latest_version))
    head_subnets                   = jsonencode(aws_subnet.public[*].id)
    head_security_groups           = jsonencode(local.node_security_groups.head)
    worker_instance_type           = var.worker_instance_type
    worker_launch_template         = aws_launch_template.node["worker"].id
    worker_launch_template_version = jsonencode(tostring(aws_launch_template.node["worker"].latest_version))
    worker_subnets                 = jsonencode(aws_subnet.private[*].id)
    worker_security_groups         = jsonencode(local.node_security_groups.worker)
  })
}
