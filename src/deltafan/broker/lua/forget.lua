-- Remove the name of a dead worker that holds nothing any more.
-- KEYS  1 worker's heartbeat  2 stream
-- ARGV  1 group  2 worker
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
if #redis.call('XPENDING', KEYS[2], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
return redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[1], ARGV[2]) + 1
