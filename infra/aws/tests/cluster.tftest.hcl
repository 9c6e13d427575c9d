# What must hold of the cluster whatever its size: nobody outside reaches Ray, nothing is stored in the clear, and no
# identity may do more than its work. Planned against a mocked AWS; nothing is created.

mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
  }

  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }

  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }

  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }

  mock_data "aws_ssm_parameter" {
    defaults = { insecure_value = "ami-0123456789abcdef0" }
  }

  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }

  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/mock" }
  }
}

# Told apart, so that giving one node what belongs to the other shows.
override_resource {
  target = aws_iam_role.node["head"]
  values = { arn = "arn:aws:iam::123456789012:role/head" }
}

override_resource {
  target = aws_iam_role.node["worker"]
  values = { arn = "arn:aws:iam::123456789012:role/worker" }
}

override_resource {
  target = aws_launch_template.node["head"]
  values = { id = "lt-head", latest_version = 3 }
}

override_resource {
  target = aws_launch_template.node["worker"]
  values = { id = "lt-worker", latest_version = 4 }
}

variables {
  name            = "espan-test"
  key_name        = "operator"
  ssh_private_key = "~/.ssh/operator.pem"
  image           = "registry.example.com/expansion-span:0.1.0"
  operator_cidrs  = ["203.0.113.7/32", "198.51.100.0/24"]
  max_workers     = 5
}

run "nobody_outside_reaches_ray" {
  assert {
    condition     = toset(keys(aws_vpc_security_group_ingress_rule.operators)) == toset(var.operator_cidrs)
    error_message = "There is one door from outside per operator range and no other."
  }

  assert {
    condition = alltrue([
      for rule in aws_vpc_security_group_ingress_rule.operators :
      rule.from_port == 22 && rule.to_port == 22 && rule.ip_protocol == "tcp" && rule.cidr_ipv4 != "0.0.0.0/0" && rule.cidr_ipv6 == null
    ])
    error_message = "Operators reach SSH only: 6379, 8265 and 10001 stay closed."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.between_nodes.cidr_ipv4 == null && aws_vpc_security_group_ingress_rule.between_nodes.cidr_ipv6 == null
    error_message = "Nodes are open to nodes, not to addresses."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.between_nodes.referenced_security_group_id == aws_security_group.nodes.id
    error_message = "Nodes are open to their own security group only."
  }

  assert {
    condition     = length(aws_security_group.nodes.ingress) == 0 && length(aws_security_group.head.ingress) == 0
    error_message = "No rule is written inside a group, where this test would not see it."
  }

  assert {
    condition     = length(aws_default_security_group.closed.ingress) == 0 && length(aws_default_security_group.closed.egress) == 0
    error_message = "The network's default security group lets nothing in or out."
  }

  assert {
    condition     = alltrue([for subnet in aws_subnet.private : subnet.map_public_ip_on_launch != true])
    error_message = "Workers have no public address."
  }

  assert {
    condition     = aws_launch_template.node["worker"].vpc_security_group_ids == toset([aws_security_group.nodes.id])
    error_message = "Workers are not behind the operators' door."
  }
}

run "without_operators_there_is_no_door" {
  variables {
    operator_cidrs = []
  }

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.operators) == 0
    error_message = "No operators, no rule."
  }
}

run "the_whole_world_is_no_operator" {
  command = plan

  variables {
    operator_cidrs = ["203.0.113.7/32", "0.0.0.0/0"]
  }

  expect_failures = [var.operator_cidrs]
}

run "half_of_the_world_is_no_operator_either" {
  command = plan

  variables {
    operator_cidrs = ["128.0.0.0/1"]
  }

  expect_failures = [var.operator_cidrs]
}

run "every_ipv6_address_is_no_operator" {
  command = plan

  variables {
    operator_cidrs = ["::/0"]
  }

  expect_failures = [var.operator_cidrs]
}

run "what_is_stored_is_encrypted_kept_and_private" {
  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_server_side_encryption_configuration.runs.rule :
      rule.apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms"
    ])
    error_message = "Objects are encrypted at rest."
  }

  assert {
    condition     = aws_s3_bucket_versioning.runs.versioning_configuration[0].status == "Enabled"
    error_message = "An overwritten or deleted object can be brought back."
  }

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.runs.block_public_acls,
      aws_s3_bucket_public_access_block.runs.block_public_policy,
      aws_s3_bucket_public_access_block.runs.ignore_public_acls,
      aws_s3_bucket_public_access_block.runs.restrict_public_buckets,
    ])
    error_message = "The bucket cannot be made public."
  }

  assert {
    condition     = aws_s3_bucket.runs.force_destroy != true
    error_message = "`terraform destroy` does not delete runs."
  }

  assert {
    condition = (
      one(data.aws_iam_policy_document.encrypted_transport_only.statement).effect == "Deny" &&
      one(one(data.aws_iam_policy_document.encrypted_transport_only.statement).condition).variable == "aws:SecureTransport"
    )
    error_message = "Requests without TLS are denied."
  }

  assert {
    condition = (
      one([for rule in aws_s3_bucket_lifecycle_configuration.runs.rule : rule if rule.id == "unfinished-uploads"]).abort_incomplete_multipart_upload[0].days_after_initiation == 7 &&
      one([for rule in aws_s3_bucket_lifecycle_configuration.runs.rule : rule if rule.id == "superseded-versions"]).noncurrent_version_expiration[0].noncurrent_days == 30 &&
      alltrue([for rule in aws_s3_bucket_lifecycle_configuration.runs.rule : rule.status == "Enabled" && length([for limit in rule.expiration : limit if coalesce(limit.days, 0) > 0]) == 0])
    )
    error_message = "Old versions and unfinished uploads go; a current object never expires by itself."
  }
}

run "every_node_has_an_encrypted_disk_and_guarded_credentials" {
  assert {
    condition = alltrue(flatten([
      for template in aws_launch_template.node : [
        for device in template.block_device_mappings : tobool(device.ebs[0].encrypted) && tobool(device.ebs[0].delete_on_termination)
      ]
    ]))
    error_message = "Disks are encrypted and go with their node."
  }

  assert {
    condition = alltrue([
      for template in aws_launch_template.node :
      length(template.block_device_mappings) == 1 && template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 2
    ])
    error_message = "Credentials are given to session-oriented requests from the node and its container only (IMDSv2)."
  }

  assert {
    condition     = aws_launch_template.node["head"].iam_instance_profile[0].arn == aws_iam_instance_profile.node["head"].arn && aws_iam_instance_profile.node["worker"].role == "espan-test-worker"
    error_message = "Head and workers have identities of their own."
  }
}

run "no_identity_may_do_more_than_its_work" {
  assert {
    condition = alltrue(flatten([
      for document in [data.aws_iam_policy_document.bucket, data.aws_iam_policy_document.autoscaler] : [
        for statement in document.statement : [for action in statement.actions : !strcontains(action, "*")]
      ]
    ]))
    error_message = "Every allowed action is named."
  }

  assert {
    condition = alltrue([
      for statement in concat(data.aws_iam_policy_document.bucket.statement, data.aws_iam_policy_document.autoscaler.statement) :
      !contains(statement.resources, "*") || alltrue([for action in statement.actions : startswith(action, "ec2:Describe")])
    ])
    error_message = "Only looking is allowed on everything."
  }

  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.autoscaler.statement :
      anytrue([for limit in statement.condition : limit.variable == "aws:ResourceTag/ray-cluster-name" && limit.values == tolist(["espan-test"])])
      if contains(statement.actions, "ec2:TerminateInstances")
    ])
    error_message = "The head ends instances of its own cluster only."
  }

  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.autoscaler.statement :
      toset(statement.resources) == toset(["arn:aws:iam::123456789012:role/worker"]) && length(statement.condition) == 1
      if contains(statement.actions, "iam:PassRole")
    ])
    error_message = "The head passes on the workers' role, and to EC2 only."
  }

  assert {
    condition     = !contains(flatten(data.aws_iam_policy_document.bucket.statement[*].actions), "s3:DeleteObjectVersion")
    error_message = "No node can delete a version for good."
  }
}

run "the_cluster_file_is_filled_in" {
  assert {
    condition     = yamldecode(output.cluster_yaml).cluster_name == "espan-test" && yamldecode(output.cluster_yaml).provider.region == "eu-central-1"
    error_message = "Name and region are this module's."
  }

  assert {
    condition = (
      yamldecode(output.cluster_yaml).available_node_types.gpu.min_workers == 0 &&
      yamldecode(output.cluster_yaml).available_node_types.gpu.max_workers == 5 &&
      yamldecode(output.cluster_yaml).max_workers == 5 &&
      yamldecode(output.cluster_yaml).available_node_types.gpu.node_config.InstanceMarketOptions.MarketType == "spot"
    )
    error_message = "Workers are spot instances, none without work and never more than max_workers."
  }

  assert {
    condition = alltrue([
      for name, kind in { head = "head", gpu = "worker" } :
      toset(yamldecode(output.cluster_yaml).available_node_types[name].node_config.SecurityGroupIds) == aws_launch_template.node[kind].vpc_security_group_ids &&
      yamldecode(output.cluster_yaml).available_node_types[name].node_config.LaunchTemplate == { LaunchTemplateId = "lt-${kind}", Version = kind == "head" ? "3" : "4" }
    ])
    error_message = "Each kind of node has its own launch template and security groups."
  }

  assert {
    condition = (
      yamldecode(output.cluster_yaml).available_node_types.head.node_config.SubnetIds == aws_subnet.public[*].id &&
      yamldecode(output.cluster_yaml).available_node_types.gpu.node_config.SubnetIds == aws_subnet.private[*].id
    )
    error_message = "The head is in the public subnets, workers in the private ones."
  }

  assert {
    condition     = strcontains(output.cluster_yaml, "RAY_AUTH_MODE=token ESPAN_HOME=s3://${output.bucket}/runs")
    error_message = "Ray asks for a token, and runs are kept in the bucket."
  }
}
