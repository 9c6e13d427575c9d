# What every instance has, however Ray starts it: an encrypted disk that goes with it, and credentials that only a
# process on the instance can ask for (IMDSv2; two hops, because Ray runs in a container).

data "aws_ssm_parameter" "machine_image" {
  name = var.machine_image_parameter
}

locals {
  node_security_groups = {
    head   = [aws_security_group.nodes.id, aws_security_group.head.id]
    worker = [aws_security_group.nodes.id]
  }
}

resource "aws_launch_template" "node" {
  for_each               = toset(["head", "worker"])
  name_prefix            = "${var.name}-${each.key}-"
  description            = "The Ray cluster's ${each.key}"
  image_id               = data.aws_ssm_parameter.machine_image.insecure_value
  vpc_security_group_ids = local.node_security_groups[each.key]
  update_default_version = true

  iam_instance_profile {
    arn = aws_iam_instance_profile.node[each.key].arn
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_size           = var.volume_gib[each.key]
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2
  }

  tag_specifications {
    resource_type = "volume"
    tags          = { Name = "${var.name}-${each.key}" }
  }
}
