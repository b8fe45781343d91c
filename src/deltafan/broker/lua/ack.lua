-- Acknowledge an ended job: every required sink has its `done`, or has run out of its budget.
-- KEYS  1 job  2 stream
-- ARGV  1 group  2 entry  3… field, value of the record (the sinks' outcome)
drop_entry(KEYS[2], ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 1 then
  if redis.call('HGET', KEYS[1], 'entry') == ARGV[2] then
    redis.call('HSET', KEYS[1], 'entry', '')
  end
  if #ARGV > 2 then
    redis.call('HSET', KEYS[1], unpack(ARGV, 3))
  end
end
return 1
