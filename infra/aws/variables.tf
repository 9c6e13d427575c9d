variable "name" {
  description = "Name of the cluster and beginning of every resource's name."
  type        = string
  default     = "expansion-span"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,30}$", var.name))
    error_message = "name is 3 to 31 lower-case letters, digits and hyphens, a letter first: it becomes part of a bucket's name."
  }
}

variable "vpc_cidr" {
  description = "Address range of the cluster's network, a /16 to /20; cut into one public and one private subnet per zone."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition     = try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20 && can(cidrhost(var.vpc_cidr, 0)), false)
    error_message = "vpc_cidr is an IPv4 range from /16 to /20, such as 10.42.0.0/16."
  }
}

variable "zones" {
  description = "In how many availability zones spot capacity is looked for."
  type        = number
  default     = 2

  validation {
    condition     = var.zones >= 1 && var.zones <= 4
    error_message = "zones is 1 to 4."
  }
}

variable "operator_cidrs" {
  description = "Address ranges from which people reach the head over SSH (the dashboard goes through an SSH tunnel). Empty: nobody."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for range in var.operator_cidrs : can(cidrhost(range, 0)) && can(regex("^[0-9.]+/[0-9]+$", range)) && try(tonumber(split("/", range)[1]) >= 16, false)
    ])
    error_message = "operator_cidrs are IPv4 ranges of /16 or narrower, such as 203.0.113.7/32: a head takes no connection from the whole world."
  }
}

variable "key_name" {
  description = "EC2 key pair by which Ray's launcher reaches the nodes over SSH."
  type        = string
}

variable "ssh_private_key" {
  description = "Path of that key pair's private half on the machine that runs `ray up`. Only the path is stored."
  type        = string
}

variable "token_file" {
  description = "Path of the cluster's token on the machine that runs `ray up`. Only the path is stored."
  type        = string
  default     = "~/.ray/auth_token"
}

variable "image" {
  description = "Container image of every node, made from cluster/Dockerfile."
  type        = string
}

variable "machine_image_parameter" {
  description = "Public SSM parameter that names the machine image; the default has NVIDIA's driver and container runtime."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
}

variable "head_instance_type" {
  description = "The head runs drivers and the autoscaler only."
  type        = string
  default     = "m6i.xlarge"
}

variable "worker_instance_type" {
  description = "Instance type of the GPU workers."
  type        = string
  default     = "g5.12xlarge"
}

variable "max_workers" {
  description = "Most GPU workers at a time: what bounds the bill."
  type        = number
  default     = 2

  validation {
    condition     = var.max_workers >= 1 && floor(var.max_workers) == var.max_workers
    error_message = "max_workers is a whole number, 1 or more."
  }
}

variable "volume_gib" {
  description = "Root volume of each node in GiB: images, the shard cache and what Ray spills."
  type        = object({ head = optional(number, 100), worker = optional(number, 500) })
  default     = {}
}
